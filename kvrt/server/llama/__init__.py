"""The face of llama.cpp's server: its routes, in its words, over the server that there is."""
