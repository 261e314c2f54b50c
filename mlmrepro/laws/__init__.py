"""What must hold on any version and any checkpoint, with no golden: one function a law, one module a group."""
