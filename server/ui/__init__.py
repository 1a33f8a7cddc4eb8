"""The web page: chat, parameters, live charts, and the ledger."""
