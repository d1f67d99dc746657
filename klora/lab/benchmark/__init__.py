"""The benchmark of fusion quality: how well each method keeps both subject and style, beside the truth."""
