"""What models learn, and what they cannot: the synthetic tasks, trained on for a few hundred steps.

This folder mirrors no module. The tests of a module say that its code does what it says; these say that a
whole model, trained, has the abilities and the limits that its parts are chosen for, which no one file has.
The experiments are those of bench/learning.py, which repeats them over seeds and learning rates.
"""
