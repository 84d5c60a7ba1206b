"""What logstore costs, measured: `python -m benchmarks --help`.

Every figure stands beside a ceiling taken in the same run; repetitions are interleaved and summed up by their
median: the ratio of two things measured side by side survives a noisy machine, an absolute figure does not.
"""
