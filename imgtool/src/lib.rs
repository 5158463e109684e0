//! Create, inspect, convert and check disk images
