//! The points of the lattice types, a table of the formats (`make.py` wrote the file).

use std::sync::OnceLock;

use super::super::fit::LANES;
use super::level_bits;

static BYTES: &[u8; 9216] = include_bytes!("grids.bin");

/// `N` points, the first of which is point `from` of the file.
const fn points<const N: usize>(from: usize) -> [u16; N] {
    let mut points = [0; N];
    let mut i = 0;
    while i < N {
        let at = 2 * (from + i);
        points[i] = u16::from_le_bytes([BYTES[at], BYTES[at + 1]]);
        i += 1;
    }
    points
}

pub(super) static IQ2_XXS: Grid = Grid::new(&const { points::<256>(0) });
pub(super) static IQ2_XS: Grid = Grid::new(&const { points::<512>(256) });
pub(super) static IQ2_S: Grid = Grid::new(&const { points::<1024>(768) });
pub(super) static IQ1: Grid = Grid::new(&const { points::<2048>(1792) });
pub(super) static IQ3_XXS: Grid = Grid::new(&const { points::<256>(3840) });
pub(super) static IQ3_S: Grid = Grid::new(&const { points::<512>(4096) });

/// Points in ascending order: the level of element `i` of eight at bit `2 * i`, of four at bit `4 * i`.
#[derive(Debug)]
pub(crate) struct Grid {
    points: &'static [u16],
    /// For [`Grid::lanes`].
    lanes: OnceLock<Vec<[f32; LANES]>>,
}

impl Grid {
    const fn new(points: &'static [u16]) -> Self {
        Self { points, lanes: OnceLock::new() }
    }

    /// Point `i`, which is below the number of points.
    #[inline(always)]
    pub fn point(&self, i: usize) -> u16 {
        self.points[i]
    }

    /// Whether it is one of the grid's points.
    pub fn contains(&self, point: u16) -> bool {
        self.points.binary_search(&point).is_ok()
    }

    /// The number of a point.
    ///
    /// # Panics
    /// If it is none of the grid's.
    pub fn index(&self, point: u16) -> usize {
        self.points.binary_search(&point).unwrap_or_else(|_| panic!("{point:#06x} is no point of the grid"))
    }

    /// For every [`LANES`] points, element after element, the levels of all of them. Kinds that share a grid have the same levels.
    pub fn lanes(&self, n_elements: usize, levels: &[i8; 16]) -> &[[f32; LANES]] {
        self.lanes.get_or_init(|| {
            let (width, mask) = (16 / n_elements, (1 << level_bits(n_elements)) - 1);
            let element = |chunk: &[u16], i: usize| {
                std::array::from_fn(|l| f32::from(levels[usize::from(chunk[l] >> (width * i) & mask)]))
            };
            let chunks = self.points.chunks_exact(LANES);
            chunks.flat_map(|chunk| (0..n_elements).map(move |i| element(chunk, i))).collect()
        })
    }
}
