"""Download, unpack, check and survey data sets."""
