"""What production teaches, as files: answers that a server collected, feedback on them, decisions of reviewers."""
