"""Files that production leaves: answers that a server collected,
feedback on them, decisions of reviewers.
"""
