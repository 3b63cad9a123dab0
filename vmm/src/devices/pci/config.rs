//! Configuration space of a PCI function (PCI Local Bus 3.0, section 6.1 and 6.2): 256 bytes, little-endian, of which
//! software may write only some bits; one memory BAR, and a list of capabilities.

/// Bytes of a function's configuration space.
pub const LEN: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const HEADER_TYPE: usize = 0x0e;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;

/// Command register: memory is decoded, the function may be a bus master, INTx is off.
const MEMORY: u8 = 1 << 1;
const MASTER: u8 = 1 << 2;
const INTX_DISABLE: u8 = 1 << 2;
/// Status register: there is a list of capabilities.
const HAS_CAPABILITIES: u8 = 1 << 4;

/// Who a function is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device, as its vendor numbers them.
    pub device: u16,
    /// Vendor and device of the board.
    pub subsystem: (u16, u16),
    /// Class, subclass and interface: 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
}

/// The space, with what of it may be written.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; LEN],
    writable: [u8; LEN],
    bar_len: u32,
    /// Where the next capability goes, and the byte that is to point to it.
    next: (usize, usize),
}

impl ConfigSpace {
    /// A function without BAR and capabilities.
    pub fn new(identity: &Identity) -> Self {
        let next = (FIRST_CAPABILITY, CAPABILITIES);
        let mut config = Self { bytes: [0; LEN], writable: [0; LEN], bar_len: 0, next };
        config.put(0, &identity.vendor.to_le_bytes());
        config.put(2, &identity.device.to_le_bytes());
        let [class @ .., _] = identity.class.to_le_bytes();
        config.put(8, &[identity.revision]);
        config.put(9, &class);
        config.put(HEADER_TYPE, &[0]);
        config.put(SUBSYSTEM, &identity.subsystem.0.to_le_bytes());
        config.put(SUBSYSTEM + 2, &identity.subsystem.1.to_le_bytes());
        config.allow(COMMAND, &[MEMORY | MASTER, INTX_DISABLE]);
        // Software keeps a note there.
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    /// Gives the function a 32-bit memory BAR of `len` bytes, a power of two of at least 16, at `address`, as firmware
    /// would; it is decoded from the start.
    pub fn set_bar(&mut self, address: u32, len: u32) {
        self.bar_len = len;
        self.put(BAR0, &address.to_le_bytes());
        self.allow(BAR0, &(!(len - 1)).to_le_bytes());
        self.put(COMMAND, &[MEMORY]);
    }

    /// Where the BAR is; `None` while it is not decoded.
    pub fn bar(&self) -> Option<(u32, u32)> {
        let is_decoded = self.bytes[COMMAND] & MEMORY != 0 && self.bar_len > 0;
        let base = self.bytes[BAR0..BAR0 + 4].try_into().map(u32::from_le_bytes).ok()?;
        is_decoded.then_some((base, self.bar_len))
    }

    /// Appends a capability of kind `id`, whose `body` follows the two bytes of its header; where it came to lie.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let (at, link) = self.next;
        self.put(link, &[u8::try_from(at).expect("capabilities fit into the space")]);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.put(STATUS, &[HAS_CAPABILITIES]);
        self.next = ((at + 2 + body.len()).next_multiple_of(4), at + 1);
        at
    }

    /// Lets software write the bits of `mask`, from `at` on.
    pub fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// Fills `data` from `offset` on; behind the end are zeros.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        let here = self.bytes.get(offset..).unwrap_or_default();
        data.iter_mut().zip(here).for_each(|(to, from)| *to = *from);
    }

    /// Takes what may be written of `data`.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let here = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        here.zip(data).for_each(|((byte, mask), new)| *byte = *byte & !mask | new & mask);
    }

    /// The 32-bit field at `at`, a place in the space.
    pub fn field(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity =
        Identity { vendor: 0x1af4, device: 0x1041, subsystem: (0x1af4, 2), class: 0x02_0304, revision: 5 };

    fn read<const N: usize>(config: &ConfigSpace, at: usize) -> [u8; N] {
        let mut data = [0xaa; N];
        config.read(at, &mut data);
        data
    }

    #[test]
    fn a_function_says_who_it_is_and_nobody_changes_that() {
        let mut config = ConfigSpace::new(&IDENTITY);
        let before: [u8; 64] = read(&config, 0);
        assert_eq!(before[..4], [0xf4, 0x1a, 0x41, 0x10]);
        assert_eq!(before[8..12], [5, 4, 3, 2]);
        assert_eq!(before[0x2c..0x30], [0xf4, 0x1a, 2, 0]);
        config.write(0, &[0xff; 64]);
        let mut after: [u8; 64] = read(&config, 0);
        assert_eq!((after[4], after[5], after[0x3c]), (6, 4, 0xff));
        after[4..6].copy_from_slice(&before[4..6]);
        after[0x3c] = before[0x3c];
        assert_eq!(after, before);
        assert_eq!(config.bar(), None);
    }

    #[test]
    fn a_bar_tells_its_size_and_moves() {
        let mut config = ConfigSpace::new(&IDENTITY);
        config.set_bar(0xe000_0000, 0x8000);
        assert_eq!(config.bar(), Some((0xe000_0000, 0x8000)));
        config.write(4, &[0, 0]);
        assert_eq!(config.bar(), None);
        config.write(0x10, &[0xff; 4]);
        assert_eq!(config.field(0x10), 0xffff_8000);
        config.write(0x10, &0xe123_4567u32.to_le_bytes());
        config.write(4, &[2]);
        assert_eq!(config.bar(), Some((0xe123_0000, 0x8000)));
    }

    #[test]
    fn capabilities_make_a_list_that_ends() {
        let mut config = ConfigSpace::new(&IDENTITY);
        assert_eq!(read::<1>(&config, 6), [0]);
        assert_eq!(config.add_capability(9, &[1, 2, 3]), 0x40);
        assert_eq!(config.add_capability(0x11, &[4; 10]), 0x48);
        assert_eq!(read::<1>(&config, 6), [0x10]);
        assert_eq!(read::<1>(&config, 0x34), [0x40]);
        assert_eq!(read::<5>(&config, 0x40), [9, 0x48, 1, 2, 3]);
        assert_eq!(read::<3>(&config, 0x48), [0x11, 0, 4]);
    }

    #[test]
    fn accesses_across_the_end_are_cut() {
        let mut config = ConfigSpace::new(&IDENTITY);
        assert_eq!(read::<4>(&config, 254), [0; 4]);
        assert_eq!(read::<4>(&config, usize::MAX), [0; 4]);
        config.write(254, &[1; 8]);
        config.write(usize::MAX, &[1; 8]);
    }
}
