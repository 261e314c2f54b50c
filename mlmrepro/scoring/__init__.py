"""How well a masked language model predicts a text: documents, mask plans, and the loss of each masked token."""
