"""How models think before they answer: formats of thoughts, found by vocabulary and template."""
