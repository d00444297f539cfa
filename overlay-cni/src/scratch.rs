//! What a pod's plugin was configured with, kept until the pod goes: the subnet may be another one by
//! then. One file for each container, as flannel's plugin keeps them.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::{config::Delegate, error::Error};

/// The directory.
pub struct Scratch<'a>(&'a Path);

impl<'a> Scratch<'a> {
    pub fn new(dir: &'a Path) -> Self {
        Self(dir)
    }

    /// Written whole or not at all, readable by root only.
    pub fn keep(&self, container: &str, delegate: &Delegate) -> Result<(), Error> {
        let write = || {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(self.0)?;
            let mut file = NamedTempFile::new_in(self.0)?;
            file.write_all(&delegate.json())?;
            file.persist(self.file(container))?;
            Ok(())
        };
        write().map_err(|source| self.error(container, source))
    }

    /// `None`: there is none, or it is damaged, and nothing can be done by it.
    pub fn find(&self, container: &str) -> Result<Option<Delegate>, Error> {
        match fs::read(self.file(container)) {
            Ok(text) => Ok(Delegate::kept(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.error(container, source)),
        }
    }

    pub fn forget(&self, container: &str) -> Result<(), Error> {
        match fs::remove_file(self.file(container)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.error(container, error))
            }
            _ => Ok(()),
        }
    }

    /// All containers that have one.
    pub fn containers(&self) -> Result<Vec<String>, Error> {
        let entries = match fs::read_dir(self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(self.error("", source)),
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        // Files that are being written have names that no container has.
        Ok(names.filter(|name| !name.starts_with('.')).collect())
    }

    fn file(&self, container: &str) -> PathBuf {
        self.0.join(container)
    }

    fn error(&self, container: &str, source: io::Error) -> Error {
        Error::Io {
            path: self.file(container),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_until_it_is_forgotten() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("a/b");
        let scratch = Scratch::new(&dir);
        assert_eq!(scratch.find("c1").expect("no error"), None);
        assert!(scratch.containers().expect("no error").is_empty());
        let delegate = Delegate::kept(br#"{"type":"bridge"}"#).expect("a configuration");
        scratch.keep("c1", &delegate).expect("it is written");
        assert_eq!(scratch.find("c1").expect("no error"), Some(delegate));
        assert_eq!(scratch.containers().expect("no error"), ["c1"]);
        fs::write(dir.join("c2"), "half").expect("it is written");
        assert_eq!(scratch.find("c2").expect("no error"), None);
        for container in ["c1", "c2", "c2"] {
            scratch.forget(container).expect("it is gone");
        }
        assert!(scratch.containers().expect("no error").is_empty());
    }
}
