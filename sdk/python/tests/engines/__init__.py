"""Tests of helpers for engines, with stand-ins of the engines' classes and real daemons."""
