//! Work on whole disk images, whatever their format: convert, compare, measure
