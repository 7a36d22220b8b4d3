"""A GOIP gateway without radio: SIMs, lines and their states, the UDP SMS/control protocol and the HTTP pages.

SIP and RTP are those of the lab's Asterisk, told what to look like by a profile (``profiles``); this package has no
SIP stack. What it says is what the vendor's "GOIP SMS Interface" and public clients say; nothing was confirmed on a
device.
"""
