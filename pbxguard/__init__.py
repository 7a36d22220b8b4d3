"""Call and text screening for Asterisk and FreeSWITCH."""

__version__ = "0.1.0"
