"""The page for the browser: `python -m mrfomm.app`; needs `pip install -e .[app]`."""
