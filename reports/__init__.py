"""Reports: results as tables, figures, PDF and HTML. Import the modules; this package loads none of them."""
