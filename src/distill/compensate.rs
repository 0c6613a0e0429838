//! Where linear compensation begins (UniAttn, arXiv 2502.00439): in every layer the matrix that makes up best, in the least
//! squares sense on calibration text, for what sharing does to the attention's output.

use ggml_ext::lisa::Part;

use super::dense::DenseModel;
use super::layer::{LayerPass, Scratch, Tape};
use super::modules::Modules;
use super::solve::ridge;

/// Sets the compensation of every `shared` layer of `all`, first to last, each on what the layers before it make of `windows`.
pub fn least_squares(model: &DenseModel, all: &mut Modules, windows: &[&[u32]]) {
    let none = Modules::none();
    let mut streams: Vec<[Vec<f32>; 2]> = windows
        .iter()
        .map(|ids| {
            let mut x = vec![0.0; model.n_ctx * model.n_embd];
            model.embed(ids, &mut x);
            [x.clone(), x]
        })
        .collect();
    let mut logs: Vec<Vec<Vec<f32>>> = vec![vec![Vec::new(); model.layers.len()]; windows.len()];
    let (mut tape, mut own, mut log, mut scratch) = (Tape::default(), Tape::default(), Vec::new(), Scratch::default());
    let last = all.iter().map(|m| m.layer).max().unwrap_or(0);
    for i in 0..=last {
        let comp = all.get(i).is_some_and(|m| m.comp);
        // Twice where a matrix is to be found: to see what is missing, then on to the next layer with it.
        for solve in [true, false] {
            if solve && !comp {
                continue;
            }
            let (mut inputs, mut missing) = (Vec::new(), Vec::new());
            for ([teacher, student], logs) in streams.iter_mut().zip(&mut logs) {
                let pass = LayerPass::new(model, all, i);
                let mut after = student.clone();
                pass.begin(student, &mut own);
                let mut own_log = std::mem::take(&mut logs[i]);
                pass.logs(&mut own, all.get(i).map(|m| &logs[all.owner(m.source)][..]), &mut own_log);
                logs[i] = own_log;
                pass.finish(&mut own, &logs[all.owner(i)], &mut after, &mut scratch);
                let pass = LayerPass::new(model, &none, i);
                let mut taught = teacher.clone();
                pass.begin(teacher, &mut tape);
                pass.logs(&mut tape, None, &mut log);
                pass.finish(&mut tape, &log, &mut taught, &mut scratch);
                if solve {
                    inputs.extend_from_slice(&own.n);
                    missing.extend(tape.attention().iter().zip(own.attention()).map(|(t, s)| t - s));
                } else {
                    (*student, *teacher) = (after, taught);
                }
            }
            if solve {
                let w = ridge(&inputs, &missing, model.n_embd);
                all.part_mut(i, Part::Comp).copy_from_slice(&w);
            }
        }
        // A layer's logarithms are as many as the squares of the windows: none is kept that no later layer reads.
        for owner in (0..=i).filter(|&owner| !(i + 1..=last).any(|later| reads(all, later, owner))) {
            logs.iter_mut().for_each(|logs| logs[owner] = Vec::new());
        }
    }
}

/// True if the attention weights of `layer` come from those that `owner` has computed.
fn reads(all: &Modules, layer: usize, owner: usize) -> bool {
    all.owner(layer) == owner || all.get(layer).is_some_and(|m| all.owner(m.source) == owner)
}
