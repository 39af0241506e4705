"""kvrt's memory in other people's stacks. Nothing here is imported by kvrt itself."""
