"""The lab: real PBXs, carriers and softphones in containers, and the evidence of every call placed there."""
