"""What is said in sound, as text.

transcriber   `kvrt.Transcriber`: files to texts
audio         samples from files
resample      to the rate that models hear
features      from samples to what an encoder reads
pages         sounds and texts in one page table
writing       texts about sounds, some at a time, token by token
choosing      which token comes next
windows       how a window's text is cut into segments, and where the next one begins
transcript    what comes out
subtitles     the same as SRT and WebVTT
"""
