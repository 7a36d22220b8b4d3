"""The pure core: values in, values out; no socket, file, clock or thread."""
