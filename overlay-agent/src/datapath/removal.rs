//! Everything goes: programs from their interfaces, then pins and directories.

use std::{fs::File, io, path::PathBuf};

use super::{
    attach,
    error::{DatapathError, pin_error},
    pins::PinDir,
};

impl PinDir {
    /// Removes everything pinned, the note and the directories. Refuses while an agent runs.
    pub fn remove_all(&self) -> Result<Vec<PathBuf>, DatapathError> {
        let root = match File::open(self.root()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(pin_error("open", self.root())(error)),
        };
        self.lock(&root)?;
        let removed = self.pins()?;
        attach::detach_all(self)?;
        self.clear()?;
        Ok(removed)
    }
}
