"""The bus as a component has it: one link, sealed publishing, verified reading, and its life."""
