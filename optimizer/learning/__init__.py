"""Learning: the language-model policy, the critic, and the learner that updates both."""
