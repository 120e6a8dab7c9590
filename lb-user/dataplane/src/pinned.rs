//! An object of the kernel that this process holds open beside its pin: a removed pin ends nothing while the agent
//! runs, and is put back.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use lb_kernel::bpf;

/// Identity of a path's content: each pin has an inode of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    /// Returns what is at a path.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self { device: found.dev(), number: found.ino() })
    }
}

/// A map or a link, and its pin.
pub(crate) struct Pinned {
    object: OwnedFd,
    path: PathBuf,
    /// The pin, as of its creation or of the last repair; none if the object is not pinned yet.
    inode: Option<Inode>,
}

impl Pinned {
    /// Opens a pin.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let object = bpf::open_pin(&path)?;
        let inode = Some(Inode::at(&path)?);
        Ok(Self { object, path, inode })
    }

    /// Pins an object.
    pub(crate) fn create(object: OwnedFd, path: PathBuf) -> io::Result<Self> {
        bpf::pin(&object, &path)?;
        let inode = Some(Inode::at(&path)?);
        Ok(Self { object, path, inode })
    }

    /// Holds an object whose pin belongs at `path`, and is not there yet.
    pub(crate) const fn unpinned(object: OwnedFd, path: PathBuf) -> Self {
        Self { object, path, inode: None }
    }

    /// Moves the pin.
    pub(crate) fn move_to(self, path: PathBuf) -> io::Result<Self> {
        fs::rename(&self.path, &path)?;
        Ok(Self { path, ..self })
    }

    /// Returns the path of the pin.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// True if the pin is still there, and not another object's.
    pub(crate) fn is_in_place(&self) -> bool {
        self.inode.is_some() && Inode::at(&self.path).ok() == self.inode
    }

    /// Pins the object again. Removes what took the pin's place.
    pub(crate) fn put_back(&mut self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        bpf::pin(&self.object, &self.path)?;
        self.inode = Some(Inode::at(&self.path)?);
        Ok(())
    }
}

impl AsFd for Pinned {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.object.as_fd()
    }
}
