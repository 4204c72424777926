"""What people and files give: bytes, names, numbers and options, read with limits and checked."""
