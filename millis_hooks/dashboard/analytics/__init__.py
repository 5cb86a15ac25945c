"""The analytics page: what is asked, the tiles, and charts that are a picture, a table and CSV."""
