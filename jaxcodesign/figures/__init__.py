"""Plain numbers to pictures and tables: matplotlib, rich and HTML."""
