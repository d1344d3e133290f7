"""twins: does adversarial robustness survive fine-tuning?"""

__version__ = "0.1.0"
