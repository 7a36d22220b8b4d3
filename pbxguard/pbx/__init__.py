"""The PBX side: protocols as bytes and values (``agi``), and thin adapters that do the I/O (``asterisk``)."""
