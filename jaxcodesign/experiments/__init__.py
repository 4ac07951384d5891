"""The questions that launchers answer, their records, schemas and pages."""
