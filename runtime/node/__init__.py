"""The node beside a PACS: images in, results back, once each, whatever dies in between. See docs/node.md."""
