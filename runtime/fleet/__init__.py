"""What processes of one Redis share: workers, equal work, and who holds which prefix."""
