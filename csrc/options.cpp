#include "options.h"

namespace ddpm_rt {

const std::vector<OptionInfo>& option_table() {
  static const std::vector<OptionInfo> kTable = {
      {"device", "", "string", "auto, cpu, cuda, cuda:N", "auto", "engine",
       "where the loop and the network run; auto is a GPU where one is there with what runs the plan on it, else the CPU"},
      {"backend", "", "choice:auto|openvino|onnxruntime|analytic|torch|tensorrt", "", "auto", "engine",
       "the library that runs the network; auto takes the best one installed. torch and tensorrt run on GPUs only"},
      {"precision", "", "choice:auto|fp32|bf16|fp16", "", "auto", "engine",
       "arithmetic of the network; auto is bf16 on a GPU, or where the processor has AMX, if the plan's bf16 self-test "
       "passes, else fp32"},
      {"threads", "", "int", "1 or more", "None", "engine",
       "threads of the network; None: the least of affinity, cgroup quota and physical cores"},
      {"max_batch", "", "int", "1 or more", "None", "engine", "images resident at a time; None: chosen"},
      {"batch_invariant", "", "bool", "", "None", "engine",
       "an image's bits do not depend on its neighbours; None: true on the CPU, false on a GPU"},
      {"cache_dir", "", "string", "a folder; empty: no cache", "None", "engine",
       "where compiled networks are kept; None: the user's cache folder"},
      {"card", "", "string", "a JSON file", "None", "engine",
       "manifest for a model file that is not a plan; None: NAME.json beside it"},
      {"cuda_library", "", "string", "a shared library", "None", "engine",
       "the GPU part of ddpm_rt; None: libddpm_rt_cuda.so as installed"},
      {"tensorrt_library", "", "string", "a shared library", "None", "engine",
       "libnvinfer.so.11 or libtensorrt_rtx.so.1; None: one on the loader's path, else one in an installed package"},
      {"trust_native", "", "bool", "", "False", "engine",
       "load machine code that a plan embeds; only for files from a source you trust"},

      {"n", "", "int", "1 to 2147483647", "1", "sample", "number of images"},
      {"labels", "class_labels", "array", "classes, class names, or -1 (unconditional); one, or n of them", "None", "sample",
       "the class of each image; None: drawn from each image's seed"},
      {"scale", "guidance_scale", "float", "finite", "None", "sample",
       "guidance scale s of e = u + s (c - u): 1 is conditional, 0 unconditional; Ho & Salimans' w is s - 1; None: the "
       "plan's"},
      {"w", "", "float", "finite", "None", "sample", "Ho & Salimans' guidance weight: scale = 1 + w; excludes scale"},
      {"steps", "num_inference_steps", "int", "1 to the schedule's T", "None", "sample",
       "steps between noise levels, one network evaluation each with most samplers; None: the plan's for its own sampler, else "
       "the sampler's default (ddpm: T)"},
      {"sampler", "",
       "choice:ddpm|ddim|pndm|dpmpp_2m|dpmpp_3m|dpmpp_2m_sde|dpmpp_2s|unipc|euler|euler_ancestral|heun|lms|deis|lcm|langevin|pc",
       "or a ddpm_rt.Table", "None", "sample", "the solver, docs/samplers.md; None: the plan's"},
      {"eta", "", "float", "0 to 1", "None", "sample",
       "share of the noise of an ancestral step (DDIM eq. 16): 0 is deterministic, 1 has DDPM's posterior variance; ddim, "
       "euler_ancestral, dpmpp_2m_sde, dpmpp_3m and dpmpp_2s; None: the plan's for its own sampler, else the sampler's default"},
      {"clip", "", "choice:none|keep_eps|rederive", "", "None", "sample",
       "x0 is clamped to the data range; rederive computes eps again from the clamped x0, keep_eps keeps the network's; "
       "None: the plan's"},
      {"variance", "", "choice:fixed_small|fixed_large|learned|learned_range", "", "None", "sample",
       "DDPM's posterior variance or beta (section 3.2), or the network's own; ddpm only; None: the plan's for its own sampler, "
       "else the network's or fixed_small"},
      {"grid", "", "string", "leading, linspace, trailing, uniform, lcm, karras, exponential, logsnr, edm, ddimN or counts 10,15,20",
       "None", "sample",
       "how the levels are spaced, docs/samplers.md; None: the plan's for its own sampler, else the sampler's default"},
      {"compat", "", "choice:diffusers|guided-diffusion|k-diffusion|edm", "", "None", "sample",
       "every convention of that project at once, its known defects included: grid, ends, order, clip, variance, uint8 rule; "
       "None: the plan's for its own sampler, else none"},
      {"sampler_options", "", "mapping", "names and values, docs/samplers.md", "None", "sample",
       "options of the one sampler and of its grid, such as order, solver_type, final_sigma, timesteps, rho"},
      {"guidance_rescale", "", "float", "0 to 1", "None", "sample",
       "phi: share of the guided output that gets the conditional one's standard deviation (2305.08891 section 3.4); None: the "
       "plan's, else 0"},
      {"guidance_interval", "", "pair", "(lo, hi), 0 <= lo < hi", "None", "sample",
       "noise levels sigma / alpha in (lo, hi] that are guided (2404.07724); elsewhere scale is 1 and nothing unconditional is "
       "evaluated; None: the plan's, else all"},
      {"threshold", "", "pair", "(p, cap), 0 < p <= 1, cap >= 1", "None", "sample",
       "dynamic thresholding (2205.11487 section 2.3): x0 is clamped to its p-quantile, kept in [1, cap], and divided by it; None: "
       "the plan's, else static clip"},
      {"cond", "", "mapping", "condition names and float32 arrays, one for all or n of them", "None", "sample",
       "the plan's conditions beside the label (docs/conditions.md): texts, small images, vectors; None: of a plan without"},
      {"negative", "", "array", "classes or class names, one or n of them; or a mapping as cond", "None", "sample",
       "what takes the null label's place in guidance, or that of the conditions' null values; None: those themselves"},
      {"guide", "", "engine", "an engine of the same shape, schedule and prediction", "None", "sample",
       "autoguidance (2406.02507): e = g + scale (c - g), g of this engine's network; None: the plan's own null label"},
      {"classifier_scale", "", "float", "finite", "None", "sample",
       "weight of the classifier's gradient (2105.05233 algorithms 1 and 2), of a plan that has one; None: the plan's, else 0"},
      {"seed", "", "int", "0 to 2^64 - 1", "None", "sample",
       "image i uses seed + i mod 2^64; excludes seeds; None: a fresh one, returned with the images"},
      {"seeds", "", "array", "n integers, each 0 to 2^64 - 1", "None", "sample", "the seed of each image; excludes seed"},
      {"latents", "", "array", "float32 [n, shape]", "None", "sample",
       "unit noise to start from, multiplied by the sampler's initial sigma; None: drawn from the seeds"},
      {"x_init", "", "array", "float32 [n, shape]", "None", "sample", "the first state exactly; excludes latents"},
      {"image", "", "array", "uint8 [n, H, W, C] or float32 [n, shape] in the data's range; one, or n of them", "None", "sample",
       "what strength starts from and mask keeps, docs/editing.md"},
      {"strength", "", "float", "0 to 1", "None", "sample",
       "image to image (2108.01073): only the last floor(steps strength) steps are taken, from image with noise; or from x_init as it "
       "is; None: all steps"},
      {"mask", "", "array", "bool or float32 in [0, 1]: [H, W], [n, H, W] or [n, shape]", "None", "sample",
       "inpainting (RePaint 2201.09865): 1 keeps image, 0 paints anew, between them a blend; ddpm, ddim, euler, euler_ancestral"},
      {"jump_length", "", "int", "1 to 1000", "None", "sample", "of mask: how many levels RePaint goes back at a time; None: 10"},
      {"resamples", "jump_n_sample", "int", "1 to 1000", "None", "sample",
       "of mask: how often RePaint passes each stretch; 1 never goes back; None: 10"},
      {"x0_every", "", "int", "1 or more", "None", "sample",
       "keeps the prediction of x0 of every k-th evaluation, counted back from the last, in the result's .x0 [n, predictions, shape]"},
      {"output", "output_type", "choice:uint8|float|pil|torch|dlpack", "", "None", "sample",
       "uint8 [n, H, W, C]; float, torch, dlpack: the final state [n, shape] as it is; None: uint8 for images, else float"},
      {"on_error", "", "choice:raise|keep", "", "raise", "sample",
       "an image that is not finite raises NumericError, or is returned and listed"},
      {"progress", "", "bool", "", "None", "sample", "a progress bar; None: on a terminal, after half a second"},
      {"callback", "", "callable", "f(row, rows, x0)", "None", "sample",
       "called after every row with the current predictions; returning False cancels"},
  };
  return kTable;
}

}  // namespace ddpm_rt
