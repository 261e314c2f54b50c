"""Laws: what must hold for any library version and any checkpoint. One function per law, one module per group."""
