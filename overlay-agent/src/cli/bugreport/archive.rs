//! The archive.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use flate2::{Compression, write::GzEncoder};

use super::part::Part;

/// In the archive, everything is below it.
const DIRECTORY: &str = "overlay-bugreport";

/// Writes a file that only its owner can read, and that was not there before.
pub fn write(path: &Path, parts: &[Part]) -> io::Result<()> {
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for part in parts {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(u64::try_from(part.text.len()).unwrap_or(u64::MAX));
        let name = format!("{DIRECTORY}/{}", part.name);
        archive.append_data(&mut header, name, part.text.as_bytes())?;
    }
    archive.into_inner()?.finish()?.flush()
}
