# included where Slicer includes parts of its build system
