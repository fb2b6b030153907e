"""What files say about lengths: units, ImageJ and OME metadata, as pure functions of text and mappings."""
