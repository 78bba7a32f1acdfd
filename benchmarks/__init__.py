"""What is claimed about speed, as programs that print it.

``python -m benchmarks`` runs ``speed``, ``brain1``, ``retrieval``, ``worker`` and ``training``.

Times are medians of several runs and depend on the machine; none of them is tested. RESULTS.md keeps one machine's figures.
"""
