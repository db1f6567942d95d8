//! Reads the members of a tar.gz, one after the other, within limits.
//!
//! The tar crate is used for raw headers only: by default it reads long names and extended headers
//! of any size into memory. The meaning of a member's path is decided in [`super::tree`].

use super::{SourceLimits, upload::Upload};
use crate::error;
use epsilon_api::{build::BuildError, units::Bytes};
use flate2::read::MultiGzDecoder;
use std::io::{self, Read};
use tar::{Entry, EntryType, PaxExtensions};

/// Largest extended header. Paths are far shorter, and nothing else in one is used.
const MAX_EXTENSION: u64 = 64 << 10;

/// Bytes below which a high ratio is normal: an empty JSON table, a generated file.
const RATIO_FROM: u64 = 16 << 20;

/// The decompressed stream, counted.
#[derive(Debug)]
pub(super) struct Unpacked {
    gzip: MultiGzDecoder<Upload>,
    bytes: u64,
    limit: Bytes,
    ratio: u64,
}

impl Unpacked {
    pub(super) fn new(upload: Upload, limits: &SourceLimits) -> Self {
        let gzip = MultiGzDecoder::new(upload);
        Self { gzip, bytes: 0, limit: limits.unpacked, ratio: limits.ratio }
    }

    /// Reads to the end, so that a cut or damaged archive is noticed even when its last member is
    /// complete.
    pub(super) fn finish(mut self) -> Result<(), BuildError> {
        io::copy(&mut self, &mut io::sink()).map(|_| ()).map_err(|cause| unreadable(&cause))
    }
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.gzip.read(buffer);
        if self.gzip.get_ref().is_empty() {
            return Err(io::Error::other(error::source_refused("the upload is empty")));
        }
        let count = count?;
        self.bytes += count as u64;
        if self.bytes > self.limit.get() {
            let text = format!("the archive unpacks to more than {}", self.limit);
            return Err(io::Error::other(error::source_too_large(text)));
        }
        let packed = self.gzip.get_ref().received().max(1);
        if self.bytes > RATIO_FROM && self.bytes / packed > self.ratio {
            let text = format!("the archive unpacks to more than {} times its size", self.ratio);
            return Err(io::Error::other(error::source_too_large(text)));
        }
        Ok(count)
    }
}

/// Why reading the archive failed: an error of our own inside, or the archive is damaged.
pub(super) fn unreadable(cause: &io::Error) -> BuildError {
    if let Some(own) = error::find(cause, |_: &BuildError| true) {
        return own.clone();
    }
    match cause.kind() {
        io::ErrorKind::UnexpectedEof => {
            error::source_incomplete("the archive is cut: it ends in the middle")
        }
        _ => error::source_refused(format!(
            "the archive is not a tar.gz, or it is damaged ({cause})"
        )),
    }
}

/// Kind of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MemberKind {
    Folder,
    File,
    /// With its target as written.
    Symlink(Vec<u8>),
    /// With the path of an earlier member.
    HardLink(Vec<u8>),
    /// Anything else, with its name for people.
    Other(&'static str),
}

/// The header of a member. Its content is read from the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) path: Vec<u8>,
    pub(super) kind: MemberKind,
    pub(super) bytes: u64,
    pub(super) executable: bool,
}

/// Extended headers of the next member.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

/// Passes each member with its content to `take`, in the archive's order.
pub(super) fn read(
    unpacked: Unpacked,
    mut take: impl FnMut(Member, &mut dyn Read) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let mut archive = tar::Archive::new(unpacked);
    let entries = archive.entries().map_err(|cause| unreadable(&cause))?;
    let mut extensions = Extensions::default();
    for entry in entries.raw(true) {
        let mut entry = entry.map_err(|cause| unreadable(&cause))?;
        match entry.header().entry_type() {
            EntryType::XGlobalHeader => {}
            EntryType::GNULongName => extensions.path = Some(long_text(&mut entry)?),
            EntryType::GNULongLink => extensions.link = Some(long_text(&mut entry)?),
            EntryType::XHeader => extensions.read_pax(&extension(&mut entry)?)?,
            _ => {
                let member = member(&entry, std::mem::take(&mut extensions))?;
                take(member, &mut entry)?;
            }
        }
    }
    archive.into_inner().finish()
}

fn member<R: Read>(entry: &Entry<'_, R>, long: Extensions) -> Result<Member, BuildError> {
    let header = entry.header();
    let path = long.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let bytes = header.entry_size().map_err(|cause| unreadable(&cause))?;
    if long.size.is_some_and(|size| size != bytes) {
        // Two sizes for one member: readers disagree where the next one starts.
        return Err(error::source_refused("the archive gives two sizes for one member"));
    }
    let link = || {
        let short = || header.link_name_bytes().map(|name| name.into_owned());
        long.link.clone().or_else(short).unwrap_or_default()
    };
    let kind = match header.entry_type() {
        _ if long.sparse => MemberKind::Other("a sparse file"),
        // Before POSIX, a folder was a file whose name ends with a slash.
        EntryType::Regular if path.ends_with(b"/") && bytes == 0 => MemberKind::Folder,
        EntryType::Regular | EntryType::Continuous => MemberKind::File,
        EntryType::Directory => MemberKind::Folder,
        EntryType::Symlink => MemberKind::Symlink(link()),
        EntryType::Link => MemberKind::HardLink(link()),
        EntryType::Char | EntryType::Block => MemberKind::Other("a device"),
        EntryType::Fifo => MemberKind::Other("a named pipe"),
        EntryType::GNUSparse => MemberKind::Other("a sparse file"),
        _ => MemberKind::Other("neither a file nor a folder nor a link"),
    };
    let executable = header.mode().is_ok_and(|mode| mode & 0o111 != 0);
    Ok(Member { path, kind, bytes, executable })
}

fn extension<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<u8>, BuildError> {
    if entry.size() > MAX_EXTENSION {
        return Err(error::source_refused("the archive has an extended header of unlikely size"));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(|cause| unreadable(&cause))?;
    Ok(bytes)
}

/// A GNU long name: ends with a zero byte.
fn long_text<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<u8>, BuildError> {
    let mut bytes = extension(entry)?;
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    Ok(bytes)
}

impl Extensions {
    fn read_pax(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        for pair in PaxExtensions::new(bytes) {
            let pair = pair.map_err(|cause| unreadable(&cause))?;
            match pair.key_bytes() {
                b"path" => self.path = Some(pair.value_bytes().to_vec()),
                b"linkpath" => self.link = Some(pair.value_bytes().to_vec()),
                b"size" => self.size = pair.value().ok().and_then(|size| size.parse().ok()),
                key if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                _ => {}
            }
        }
        Ok(())
    }
}
