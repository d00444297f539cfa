//! Files that readers see either in the old state or in the new one.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Readable by everyone, whatever the umask says: containers' tools run as other users.
const FILE_MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o755;

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot create the directory {}: {source}; create it or name another file", path.display())]
    CreateDir { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}; check the directory's permissions and free space", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// Writes a temporary file beside `path` and renames it. Creates the directory if need be.
pub fn replace(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    DirBuilder::new()
        .recursive(true)
        .mode(DIR_MODE)
        .create(dir)
        .map_err(|source| FileError::CreateDir {
            path: dir.to_owned(),
            source,
        })?;
    write_and_rename(path, dir, contents).map_err(|source| FileError::Write {
        path: path.to_owned(),
        source,
    })
}

fn write_and_rename(path: &Path, dir: &Path, contents: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    let mut file = tempfile::Builder::new().prefix(&prefix).tempfile_in(dir)?;
    file.write_all(contents)?;
    file.as_file()
        .set_permissions(Permissions::from_mode(FILE_MODE))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(dir)?.sync_all()
}

/// Reads a file of which nobody expects more than a page. Bytes that are not UTF-8 become U+FFFD.
pub fn read(path: &Path) -> Result<Option<String>, FileError> {
    const LIMIT: u64 = 1 << 20;
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(File::open(path)?, LIMIT), &mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Replaces a regular file; writes to what is none, such as `/dev/stdout`, and through a symbolic
/// link.
pub fn replace_or_write(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() && !metadata.is_dir() => fs::write(path, contents)
            .map_err(|source| FileError::Write {
                path: path.to_owned(),
                source,
            }),
        _ => replace(path, contents),
    }
}
