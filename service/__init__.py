"""Onsale: a booking service for the moment when everybody wants a ticket."""
