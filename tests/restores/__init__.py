"""Stores that come back older than the other knows them to be, at random points of a sale."""
