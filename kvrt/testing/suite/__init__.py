"""The conformance kit: what every device must do, tested through `kvrt.spi` alone.

pytest --pyargs kvrt.testing.suite --kvrt-backend NAME
"""
