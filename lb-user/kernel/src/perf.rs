//! Buffers into which BPF programs write records (`BPF_MAP_TYPE_PERF_EVENT_ARRAY`), one for each CPU. aya's buffers
//! wake the reader for each record, which costs the program more than the record; these are read at the reader's pace.
#![expect(unsafe_code, reason = "perf_event_open(2), and a buffer shared with the kernel")]

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use aya_obj::generated::{
    PERF_EVENT_IOC_ENABLE, PERF_FLAG_FD_CLOEXEC, perf_event_attr, perf_event_header, perf_event_mmap_page,
    perf_event_sample_format, perf_event_type, perf_sw_ids, perf_type_id,
};

/// The buffer of one CPU.
pub struct PerfBuffer {
    event: OwnedFd,
    /// The kernel's page of indexes, then the data.
    pages: NonNull<perf_event_mmap_page>,
    /// Octets of the page of indexes.
    page: usize,
    /// Octets of data, a power of two.
    size: usize,
}

impl PerfBuffer {
    /// Opens a buffer for records of programs on a CPU, of at least `octets`.
    ///
    /// # Errors
    /// `EACCES` or `EPERM` without CAP_PERFMON, `ENODEV` if the CPU is not online, `EPERM` without the right to lock as
    /// much memory.
    pub fn open(cpu: u32, octets: usize) -> io::Result<Self> {
        // SAFETY: no precondition.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let size = octets.next_power_of_two().max(page);
        let event = open_event(cpu, size / 2)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping; the kernel chooses its place.
        let pages =
            unsafe { libc::mmap(ptr::null_mut(), page + size, protection, libc::MAP_SHARED, event.as_raw_fd(), 0) };
        if pages == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let pages = NonNull::new(pages.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let buffer = Self { event, pages, page, size };
        // SAFETY: an ioctl without an argument on our descriptor.
        if unsafe { libc::ioctl(buffer.event.as_raw_fd(), PERF_EVENT_IOC_ENABLE.into(), 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(buffer)
    }

    /// Passes each record to `each`, oldest first, and makes room for others. The kernel pads a record to a length of 4
    /// beyond a multiple of 8.
    pub fn read(&mut self, mut each: impl FnMut(&[u8])) {
        const SAMPLE: u32 = perf_event_type::PERF_RECORD_SAMPLE as u32;
        let header_size = size_of::<perf_event_header>();
        let head = self.index(mem::offset_of!(perf_event_mmap_page, data_head)).load(Ordering::Acquire);
        let tail_index = self.index(mem::offset_of!(perf_event_mmap_page, data_tail));
        let mut tail = tail_index.load(Ordering::Relaxed);
        let mut record = Vec::new();
        while tail < head {
            self.copy(tail, header_size, &mut record);
            // SAFETY: as many octets as the header has, and any octets are one.
            let header = unsafe { record.as_ptr().cast::<perf_event_header>().read_unaligned() };
            let length = usize::from(header.size);
            if length < header_size {
                // Never from the kernel.
                tail = head;
                break;
            }
            if header.type_ == SAMPLE {
                self.copy(tail, length, &mut record);
                let size =
                    record.get(header_size..).and_then(|rest| rest.first_chunk()).copied().map(u32::from_ne_bytes);
                let data = record.get(header_size + size_of::<u32>()..).unwrap_or_default();
                each(data.get(..size.map_or(0, |size| size as usize)).unwrap_or(data));
            }
            tail += length as u64;
        }
        self.index(mem::offset_of!(perf_event_mmap_page, data_tail)).store(tail, Ordering::Release);
    }

    /// An index in the kernel's page.
    fn index(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: an aligned field of the mapping, which lives as long as `self`; the kernel accesses it atomically.
        unsafe { AtomicU64::from_ptr(self.pages.as_ptr().byte_add(offset).cast()) }
    }

    /// Copies octets from a position of the stream, which wraps at the end of the data.
    fn copy(&self, from: u64, length: usize, to: &mut Vec<u8>) {
        to.clear();
        // The size is a power of two: the low bits are the place.
        #[expect(clippy::cast_possible_truncation, reason = "below the size")]
        let start = from as usize & (self.size - 1);
        let first = length.min(self.size - start);
        // SAFETY: both parts are within the data, which the kernel does not write before `data_tail` passes them.
        unsafe {
            let data = self.pages.as_ptr().cast::<u8>().add(self.page);
            to.extend_from_slice(std::slice::from_raw_parts(data.add(start), first));
            to.extend_from_slice(std::slice::from_raw_parts(data, length - first));
        }
    }
}

impl AsFd for PerfBuffer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Drop for PerfBuffer {
    fn drop(&mut self) {
        // SAFETY: our own mapping, with its length.
        unsafe { libc::munmap(self.pages.as_ptr().cast(), self.page + self.size) };
    }
}

/// Opens the event of a CPU. Nothing waits for it, so that a wake-up is due only after `watermark` octets.
fn open_event(cpu: u32, watermark: usize) -> io::Result<OwnedFd> {
    // SAFETY: a struct of integers and unions of them.
    let mut attr: perf_event_attr = unsafe { mem::zeroed() };
    attr.type_ = perf_type_id::PERF_TYPE_SOFTWARE as u32;
    // Of Linux 4.10, which every later kernel takes.
    attr.size = mem::offset_of!(perf_event_attr, aux_sample_size) as u32;
    attr.config = perf_sw_ids::PERF_COUNT_SW_BPF_OUTPUT as u64;
    attr.sample_type = perf_event_sample_format::PERF_SAMPLE_RAW as u64;
    attr.__bindgen_anon_1.sample_period = 1;
    attr.set_watermark(1);
    attr.__bindgen_anon_2.wakeup_watermark = u32::try_from(watermark).unwrap_or(u32::MAX);
    const EVERY_PROCESS: libc::pid_t = -1;
    const NO_GROUP: libc::c_int = -1;
    // SAFETY: the kernel reads the attributes; the descriptor that it returns has no other owner.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            EVERY_PROCESS,
            cpu,
            NO_GROUP,
            libc::c_ulong::from(PERF_FLAG_FD_CLOEXEC),
        );
        let fd = i32::try_from(fd).unwrap_or(-1);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}
