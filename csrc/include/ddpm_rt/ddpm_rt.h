/* ddpm_rt: a compiled runtime for diffusion models. C API, version 0 (frozen as 1.0 by the embedding work).
 *
 * Threads: every function may be called from any thread; one handle may be used by several threads at once except while
 * it is being released. Nothing here exits, prints, or installs a signal handler. No exception crosses this edge.
 *
 * Errors: a function that can fail returns a ddpm_rt_status. ddpm_rt_last_error() is the message of the last failed
 * call on the calling thread: field, what was expected, what was found.
 *
 * Structs: begin with `struct_size`; fill them with their *_init function, then change fields. The library reads no
 * field beyond the size it is told.
 *
 * A complete program:
 *
 *   ddpm_rt_engine* engine; ddpm_rt_engine_options eo; ddpm_rt_sample_options so;
 *   ddpm_rt_engine_options_init(&eo, sizeof eo);
 *   if (ddpm_rt_engine_open("digits.plan", &eo, &engine)) { puts(ddpm_rt_last_error()); return 1; }
 *   ddpm_rt_sample_options_init(&so, sizeof so);
 *   so.n = 1; so.has_seed = 1; so.seed = 0;
 *   unsigned char image[28 * 28];
 *   if (ddpm_rt_engine_sample(engine, &so, image, sizeof image)) { puts(ddpm_rt_last_error()); return 1; }
 *   ddpm_rt_engine_release(engine);
 */
#ifndef DDPM_RT_DDPM_RT_H_
#define DDPM_RT_DDPM_RT_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define DDPM_RT_API __declspec(dllexport)
#else
#define DDPM_RT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ddpm_rt_status {
  DDPM_RT_OK = 0,
  DDPM_RT_PLAN_ERROR = 1,      /* a plan file is missing, malformed, damaged or of another version */
  DDPM_RT_SHAPE_ERROR = 2,     /* an array has the wrong shape, length or dtype */
  DDPM_RT_OPTION_ERROR = 3,    /* an option is unknown, out of range or makes no sense with another */
  DDPM_RT_DEVICE_ERROR = 4,    /* no such device, or a forked child used its parent's engine */
  DDPM_RT_BACKEND_ERROR = 5,   /* the library that runs the network is missing or failed; a callable raised */
  DDPM_RT_NUMERIC_ERROR = 6,   /* an image is not finite; ddpm_rt_request_result says which */
  DDPM_RT_CANCELLED = 7,
  DDPM_RT_INTERNAL_ERROR = 8,
  DDPM_RT_PENDING = 9          /* ddpm_rt_request_wait: not finished within the time given */
} ddpm_rt_status;

typedef struct ddpm_rt_engine ddpm_rt_engine;
typedef struct ddpm_rt_request ddpm_rt_request;
typedef struct ddpm_rt_plan ddpm_rt_plan;
typedef struct ddpm_rt_plan_writer ddpm_rt_plan_writer;
typedef struct ddpm_rt_string ddpm_rt_string; /* owned text; ddpm_rt_string_release */

DDPM_RT_API const char* ddpm_rt_version(void);    /* "0.1.0" */
DDPM_RT_API const char* ddpm_rt_last_error(void); /* valid until the next failing call on this thread */

DDPM_RT_API const char* ddpm_rt_string_data(const ddpm_rt_string* s); /* NUL-terminated UTF-8 */
DDPM_RT_API void ddpm_rt_string_release(ddpm_rt_string* s);

/* ------------------------------------------------------------------------------------------------ options table */

/* One row of the table of options that Python, the command line and docs/options.md follow. */
typedef struct ddpm_rt_option_info {
  const char* name;
  const char* aliases;     /* comma separated, may be empty */
  const char* type;        /* "int", "float", "string", "choice:a|b|c", "array", "bool", "callable" */
  const char* range;       /* for people */
  const char* default_value;
  const char* scope;       /* "engine" or "sample" */
  const char* help;
} ddpm_rt_option_info;
DDPM_RT_API size_t ddpm_rt_option_count(void);
DDPM_RT_API const ddpm_rt_option_info* ddpm_rt_option_at(size_t index);

/* --------------------------------------------------------------------------------------------------- plan files */

DDPM_RT_API ddpm_rt_status ddpm_rt_plan_open(const char* path, ddpm_rt_plan** plan);
DDPM_RT_API void ddpm_rt_plan_release(ddpm_rt_plan* plan);
DDPM_RT_API const char* ddpm_rt_plan_manifest(const ddpm_rt_plan* plan); /* JSON, owned by the plan */
DDPM_RT_API size_t ddpm_rt_plan_section_count(const ddpm_rt_plan* plan);
/* sha256_hex: 65 bytes or null */
DDPM_RT_API ddpm_rt_status ddpm_rt_plan_section_info(const ddpm_rt_plan* plan, size_t index, const char** name,
                                                     uint64_t* offset, uint64_t* bytes, char* sha256_hex);
DDPM_RT_API ddpm_rt_status ddpm_rt_plan_section_read(const ddpm_rt_plan* plan, const char* name, void* out, size_t bytes);
DDPM_RT_API ddpm_rt_status ddpm_rt_plan_verify(const ddpm_rt_plan* plan); /* every section against its SHA-256 */
DDPM_RT_API ddpm_rt_status ddpm_rt_plan_writer_create(ddpm_rt_plan_writer** writer);
DDPM_RT_API ddpm_rt_status ddpm_rt_plan_writer_add(ddpm_rt_plan_writer* writer, const char* name, const void* data,
                                                   size_t bytes); /* copies */
DDPM_RT_API ddpm_rt_status ddpm_rt_plan_writer_finish(ddpm_rt_plan_writer* writer, const char* manifest_json,
                                                      const char* path); /* atomic; parses the manifest first */
DDPM_RT_API void ddpm_rt_plan_writer_release(ddpm_rt_plan_writer* writer);

/* ------------------------------------------------------------------------------------------------------- engine */

typedef void (*ddpm_rt_log_fn)(void* user, int level /* 0 debug .. 3 error */, const char* message);

/* A network of the host's own on a GPU, as functions over device memory. Element types of its input and output: */
typedef enum ddpm_rt_device_type { DDPM_RT_FLOAT32 = 0, DDPM_RT_FLOAT16 = 1, DDPM_RT_BFLOAT16 = 2 } ddpm_rt_device_type;

/* `count` evaluations, side by side in device memory. Rows that nobody asked for hold zeros. */
typedef struct ddpm_rt_device_call {
  size_t struct_size;
  const void* x;           /* [count, elements] of x_type; [count, C, H, W], or [count, H, W, C] with channels_last */
  const float* t;          /* [count] network times */
  const int64_t* label;    /* [count], the null label is num_classes; null for unconditional models */
  const void* rows;        /* [count, rows_bytes], null without */
  void* out;               /* [count, elements] of out_type, laid out as x */
  size_t count;
  void* stream;            /* cudaStream_t; null in capture */
} ddpm_rt_device_call;

/* The functions are called from one thread of the engine, whose current device is the engine's; they return null, or a
 * message (valid until the next call) that fails the requests concerned. */
typedef struct ddpm_rt_device_denoiser {
  size_t struct_size;
  const char* name;        /* of the backend, its version and its arithmetic, as info() shows them: letters, digits, ._+- */
  const char* version;
  const char* precision;   /* "fp32", "fp16", "bf16": selects the plan's tolerance */
  int32_t x_type, out_type;  /* ddpm_rt_device_type */
  int32_t channels_last;
  int32_t any_count;       /* 1: every count is as good, and a row's bits do not depend on its neighbours */
  int32_t capturable;      /* 1: enqueue may run while the stream captures a CUDA graph */
  size_t max_count;        /* 0: 256 */
  size_t rows_bytes;       /* above 0: `rows` is read in place of t and label; embed fills it. A multiple of 16 */
  void* user;
  /* Puts the evaluations on call->stream. On an emulated device the stream is idle, and the work must be done on return. */
  const char* (*enqueue)(void* user, const ddpm_rt_device_call* call);
  /* May be null. A cudaGraph_t that does what enqueue does, always over these addresses; it stays the host's, and is copied
   * into the engine's own graph. The engine's stream is idle: the call may be run on another one first. */
  const char* (*capture)(void* user, const ddpm_rt_device_call* call, void** graph);
  /* rows [count, rows_bytes] in device memory for t and label [count] in host memory, in the stream's order. */
  const char* (*embed)(void* user, const float* t, const int64_t* label, size_t count, void* rows, void* stream);
} ddpm_rt_device_denoiser;
DDPM_RT_API void ddpm_rt_device_denoiser_init(ddpm_rt_device_denoiser* denoiser, size_t struct_size);

typedef struct ddpm_rt_engine_options {
  size_t struct_size;
  const char* device;      /* "auto", "cpu", "cuda", "cuda:N". auto takes a GPU where device_denoisers can run on one */
  const char* backend;     /* "auto", "openvino", "onnxruntime", "analytic", "torch", "tensorrt" */
  const char* precision;   /* "auto", "fp32", "bf16", "fp16" */
  int32_t threads;         /* 0: min(affinity, cgroup quota, physical cores) */
  int32_t max_batch;       /* resident rows of a lane; 0: chosen */
  int32_t batch_invariant; /* -1: default (true on the CPU, false on a GPU), 0, 1 */
  const char* cache_dir;   /* null: the user's cache folder; "": none */
  const char* openvino_library;    /* path of libopenvino_c.so; null: default names */
  const char* onnxruntime_library; /* path of libonnxruntime.so; null: default names */
  ddpm_rt_log_fn log;      /* may be null; may be called from the engine's threads */
  void* log_user;
  const char* cuda_library;        /* path of libddpm_rt_cuda.so; null: beside this library */
  const ddpm_rt_device_denoiser* const* device_denoisers; /* what runs the network on a GPU: the first that passes the
                                                             plan's self-test. Copied; `user` must outlive the engine */
  size_t device_denoiser_count;
  int32_t trust_native;            /* 1: load the engines (machine code) that the plan embeds, where a GPU can run them */
  const char* tensorrt_library;    /* path of libnvinfer.so.11 or libtensorrt_rtx.so.1, or several with ":"
                                      between them: the first that built an engine; null: default names */
} ddpm_rt_engine_options;
DDPM_RT_API void ddpm_rt_engine_options_init(ddpm_rt_engine_options* options, size_t struct_size);

/* JSON: kind ("cuda", or "emulated" in the tests), name, compute_capability, multiprocessors, memory_bytes, driver, runtime,
 * library. device: "cuda" or "cuda:N"; cuda_library as in the options. DDPM_RT_DEVICE_ERROR says what is missing. */
DDPM_RT_API ddpm_rt_status ddpm_rt_device_info(const char* device, const char* cuda_library, ddpm_rt_string** json);

DDPM_RT_API ddpm_rt_status ddpm_rt_engine_open(const char* plan_path, const ddpm_rt_engine_options* options,
                                               ddpm_rt_engine** engine);

/* eps = fn(x, t, label) for `count` samples; called from one thread of the engine. x and out: [count, elements] float32;
 * t: [count] network times; label: [count], the null label is num_classes, null pointer for unconditional models.
 * Return null on success, or a message (valid until the next call) that fails the requests of this evaluation. */
typedef const char* (*ddpm_rt_denoise_fn)(void* user, const float* x, const float* t, const int64_t* label, size_t count,
                                          float* out);
/* manifest_json: the plan manifest's keys sample, prediction, time, class_names/num_classes, defaults; and for continuous time
 * (T 0) schedule, with its kind. fn may be null with options->device_denoisers, which then run. */
DDPM_RT_API ddpm_rt_status ddpm_rt_engine_from_callable(const char* manifest_json, const double* alpha_bar, size_t T,
                                                        ddpm_rt_denoise_fn fn, void* user,
                                                        const ddpm_rt_engine_options* options, ddpm_rt_engine** engine);
/* Cancels what runs, joins the engine's threads. Null is fine. */
DDPM_RT_API void ddpm_rt_engine_release(ddpm_rt_engine* engine);
/* JSON: backend, versions, precision, threads, buckets with measured seconds, invariance probe, shape, schedule, defaults,
 * class_names, fingerprint. */
DDPM_RT_API ddpm_rt_status ddpm_rt_engine_info(ddpm_rt_engine* engine, ddpm_rt_string** json);
/* JSON: what `model` of ddpm_rt_rows takes, with alpha_bar [T] (empty in continuous time) and clip_range [2]. */
DDPM_RT_API ddpm_rt_status ddpm_rt_engine_model(ddpm_rt_engine* engine, ddpm_rt_string** json);

/* Called after every tick from the engine's thread (on a GPU while the next one runs). row of rows are done; x0 is [images, elements] float32, the current
 * predictions of the images in flight, valid during the call. Return 0 to go on, 1 to stop (DDPM_RT_CANCELLED). */
typedef int (*ddpm_rt_step_fn)(void* user, int64_t row, int64_t rows, const float* x0, size_t images);

typedef enum ddpm_rt_output { DDPM_RT_UINT8_NHWC = 0, DDPM_RT_FLOAT_NCHW = 1 } ddpm_rt_output;

/* A tensor of a request, of a plan whose manifest has `conditions` beside the label. */
typedef struct ddpm_rt_condition {
  size_t struct_size;
  const char* name;
  const float* data;         /* `count` arrays, one behind the other: [*shape] each, or [L, *shape] of a sequence */
  size_t elements;           /* numbers in data */
  size_t count;              /* 1: for all images, or n */
  const int64_t* lengths;    /* [count] L of each sequence, 1 to max_length where there is a mask; null: max_length */
} ddpm_rt_condition;
DDPM_RT_API void ddpm_rt_condition_init(ddpm_rt_condition* condition, size_t struct_size);

typedef struct ddpm_rt_sample_options {
  size_t struct_size;
  int64_t n;                 /* images, 1 .. 2^31 - 1 */
  const int64_t* labels;     /* null: drawn from each image's seed; else 1 or n entries, -1 is unconditional */
  size_t label_count;
  double scale;              /* guidance scale s, e = u + s (c - u); NaN: the plan's */
  const char* sampler;       /* null: the plan's */
  int32_t steps;             /* 0: the plan's for its own sampler, else the sampler's default */
  double eta;                /* NaN: the plan's for its own sampler, else the sampler's default */
  const char* clip;          /* "none", "keep_eps", "rederive"; null: the plan's */
  const char* variance;      /* "fixed_small", "fixed_large"; null: the plan's */
  const char* grid;          /* one of ddpm_rt_samplers()'s grids, "ddimN", "10,15,20"; null: as eta */
  int32_t has_seed;          /* 0: a fresh seed, returned in the result */
  uint64_t seed;             /* image i uses seed + i mod 2^64 */
  const uint64_t* seeds;     /* one per image; excludes has_seed */
  size_t seed_count;
  const float* latents;      /* [n, elements] unit noise, multiplied by the sampler's initial sigma; null: drawn */
  size_t latent_elements;
  const float* x_init;       /* [n, elements] exact first state; excludes latents */
  size_t x_init_elements;
  int32_t output;            /* ddpm_rt_output */
  int32_t keep_nonfinite;    /* 1: non-finite images are returned and listed, no error */
  ddpm_rt_step_fn callback;  /* may be null */
  void* callback_user;
  const char* compat;        /* "diffusers", "guided-diffusion", "k-diffusion", "edm": every convention of that project;
                                null: the plan's for its own sampler, else none; "": none */
  const char* sampler_options; /* JSON object of the sampler's and the grid's own options (ddpm_rt_samplers); may be null */
  const void* rows;          /* a table of the caller's own, 256 bytes a row, in place of a sampler and its options */
  size_t row_count;
  double init_sigma;         /* of `rows`: x_T = init_sigma * unit noise; 1 */
  int32_t out_on_device;     /* 1: `out` is memory of the engine's GPU, ready to be written when submit is called */
  double guidance_rescale;   /* phi of Lin et al. 2305.08891 section 3.4, 0 to 1; NaN: the plan's */
  double guidance_interval_lo, guidance_interval_hi; /* sigma / alpha; outside of (lo, hi] scale is 1; NaN: the plan's */
  double threshold_p, threshold_cap; /* dynamic thresholding (Imagen section 2.3); NaN: the plan's */
  double classifier_scale;   /* of a plan with a classifier's gradient; NaN: the plan's */
  const int64_t* negative;   /* labels in place of the null label, 1 or n entries; null: none */
  size_t negative_count;
  ddpm_rt_engine* guide;     /* autoguidance: e = g + scale (c - g), g of the guide's network; null: none. Must outlive the request */
  const ddpm_rt_condition* const* conditions; /* every one of the plan's, in any order */
  size_t condition_count;
  const ddpm_rt_condition* const* negative_conditions; /* in place of their null values in guidance */
  size_t negative_condition_count;
  const float* image;        /* [n or 1, elements] in the data's range: what strength starts from, what mask keeps; null: none */
  size_t image_elements;
  double strength;           /* 0 to 1: only the last floor(steps strength) steps are taken, from image with the noise of their
                                first level (or from x_init as it is); NaN: all steps */
  const float* mask;         /* [n or 1, elements] in [0, 1]: 1 keeps image's number, 0 paints it anew (RePaint); null: none */
  size_t mask_elements;
  int32_t jump_length, resamples; /* of mask: RePaint's j and r, 1 to 1000; 0: 10 */
  int32_t invert;            /* above 0: DDIM backwards, x_init being pictures and the result the first states they come from; so
                                many evaluations at each level; 0: sampling */
  int32_t x0_every;          /* above 0: the request keeps the prediction of x0 of every k-th evaluation, the last included */
} ddpm_rt_sample_options;
DDPM_RT_API void ddpm_rt_sample_options_init(ddpm_rt_sample_options* options, size_t struct_size);

/* What came of a request. Arrays belong to the request. */
typedef struct ddpm_rt_result {
  size_t struct_size;
  int64_t n;
  const int64_t* labels;   /* [n], -1 unconditional */
  const uint64_t* seeds;   /* [n] */
  const int64_t* bad;      /* indices of non-finite images */
  size_t bad_count;
  int64_t nfe;             /* network evaluations of one image, guided ones counted once per network row */
  double seconds;          /* from submission to completion */
  int64_t steps;           /* of the sampler, as resolved; of a table of the caller's own its rows */
  const float* x0;         /* [n, predictions, elements] with x0_every, of a request that succeeded; else null */
  size_t x0_elements;      /* all of them */
} ddpm_rt_result;

/* All of `options` is checked and copied before this returns; `out` (n images of the output's type) must live until the
 * request is finished. Never blocks on the network. */
DDPM_RT_API ddpm_rt_status ddpm_rt_engine_submit(ddpm_rt_engine* engine, const ddpm_rt_sample_options* options, void* out,
                                                 size_t out_bytes, ddpm_rt_request** request);
/* Waits at most `seconds` (negative: for ever). DDPM_RT_PENDING, or the request's own status. */
DDPM_RT_API ddpm_rt_status ddpm_rt_request_wait(ddpm_rt_request* request, double seconds);
DDPM_RT_API void ddpm_rt_request_cancel(ddpm_rt_request* request); /* takes effect within one tick */
DDPM_RT_API void ddpm_rt_request_progress(const ddpm_rt_request* request, int64_t* row, int64_t* rows);
DDPM_RT_API ddpm_rt_status ddpm_rt_request_result(const ddpm_rt_request* request, ddpm_rt_result* result);
/* Cancels if still running and waits for the engine to let go of `out`. Null is fine. */
DDPM_RT_API void ddpm_rt_request_release(ddpm_rt_request* request);
/* submit + wait + release. */
DDPM_RT_API ddpm_rt_status ddpm_rt_engine_sample(ddpm_rt_engine* engine, const ddpm_rt_sample_options* options, void* out,
                                                 size_t out_bytes);

/* ------------------------------------------------------------------------------------------------ compiled engines */

/* What this library makes of a TensorRT library (null: default names), as JSON: library, version. With engine: whether it
 * loads here. DDPM_RT_PLAN_ERROR: the bytes are no engine; DDPM_RT_BACKEND_ERROR: no library, or another version of it;
 * DDPM_RT_DEVICE_ERROR: no GPU, or not one for this engine. */
DDPM_RT_API ddpm_rt_status ddpm_rt_tensorrt_examine(const char* tensorrt_library, const void* engine, size_t bytes,
                                                    ddpm_rt_string** json);

/* ------------------------------------------------------------------------------- the pieces, for a loop of your own */

/* Normals `first .. first+count` of (seed, index, stream), exactly what the engine draws. */
DDPM_RT_API void ddpm_rt_noise(uint64_t seed, uint32_t index, uint32_t stream, size_t first, size_t count, float* out);
/* The rows (256 bytes each) a sampler compiles to. model: "eps", "x0", "v", or a JSON object with the plan manifest's keys
 * prediction, variance, time, and for continuous time schedule (alpha_bar null and T 0). Only the solver fields of `options`
 * are read; the clip is "rederive" unless said, or the project's with compat. *rows is a string handle whose data is `*count`
 * rows. */
DDPM_RT_API ddpm_rt_status ddpm_rt_rows(const double* alpha_bar, size_t T, const char* model,
                                        const ddpm_rt_sample_options* options, ddpm_rt_string** rows, size_t* count,
                                        double* init_sigma);
/* The same before rounding: `*count` rows of 42 float64, every field of a row in order (flags and noise_index as numbers). */
DDPM_RT_API ddpm_rt_status ddpm_rt_rows_f64(const double* alpha_bar, size_t T, const char* model,
                                            const ddpm_rt_sample_options* options, ddpm_rt_string** rows, size_t* count,
                                            double* init_sigma);
/* Checks `count` rows of the caller's own: flags that have an executor, LAST at the end, finite fields, history in order. */
DDPM_RT_API ddpm_rt_status ddpm_rt_rows_check(const void* rows, size_t count, double init_sigma);
/* JSON: every sampler with its options, order, evaluations and citation, and every grid. */
DDPM_RT_API ddpm_rt_status ddpm_rt_samplers(ddpm_rt_string** json);
/* Operands of a row's rarer flags, [count, elements] each unless said; null where the row has no such flag. */
typedef struct ddpm_rt_step_operands {
  size_t struct_size;
  const float* guide;        /* output of a second network: e += scale2 (eps - guide) */
  double scale2;
  const float* variance;     /* LEARNED_VAR, LEARNED_RANGE: the raw second half of the output that eps is the first of */
  const float* grad;         /* GRAD: d log p(y | x) / dx of a classifier */
  const float* known;        /* BLEND: the clean picture to keep where mask is 1 */
  const float* mask;
  const float* x0_true;      /* VLB: the data */
  double* kl;                /* VLB: [count] receives nats per element */
} ddpm_rt_step_operands;
DDPM_RT_API void ddpm_rt_step_operands_init(ddpm_rt_step_operands* operands, size_t struct_size);

/* Executes `row` for each of `count` samples: x [count, elements] in place. See kernels/step.h. eps_uncond may be null.
 * history: [3, count, elements] or null; anchor: [count, elements] or null; in: next input, or null; x0: the prediction
 * of the clean sample, or null; operands may be null. */
DDPM_RT_API ddpm_rt_status ddpm_rt_step(float* x, const float* eps, const float* eps_uncond, const void* row,
                                        const void* next_row, double scale, const uint64_t* seeds, float* history,
                                        uint32_t ring, float* anchor, float* in, float* x0,
                                        const ddpm_rt_step_operands* operands, size_t count, size_t elements);
DDPM_RT_API ddpm_rt_status ddpm_rt_cfg_combine(const float* cond, const float* uncond, const float* scale, double rescale,
                                               size_t count, size_t elements, float* out);

/* The same on a GPU, in the caller's memory and on the caller's stream. Arrays are memory of the device, row, next_row, seeds
 * and scale are the host's and are read before the call returns. Nothing is waited for; a call cannot be captured into a graph. */
typedef struct ddpm_rt_device_kernels ddpm_rt_device_kernels;
typedef struct ddpm_rt_device_step_call {
  size_t struct_size;
  float* x;                  /* [count, channels, pixels], the new state and, unless source is given, the old one */
  const float* source;       /* or null */
  const void* eps;           /* of eps_type, as eps_uncond and the operands guide, variance and grad are */
  const void* eps_uncond;    /* or null */
  int32_t eps_type;          /* 0: float32, 1: float16, 2: bfloat16 */
  int32_t channels_last;     /* 1: those of eps_type are [count, pixels, channels] */
  const void* row;           /* 256 bytes */
  const void* next_row;      /* or null */
  double scale;
  const uint64_t* seeds;     /* [count] */
  float* history;            /* [3, count, channels, pixels] or null; the next four are [count, channels, pixels] or null */
  uint32_t ring;
  float* anchor;
  float* in;
  float* x0;
  const ddpm_rt_step_operands* operands; /* or null; its arrays are memory of the device */
  size_t count, channels, pixels;
  void* stream;              /* 1 is the legacy default stream, as in CUDA; null is refused */
} ddpm_rt_device_step_call;
DDPM_RT_API void ddpm_rt_device_step_call_init(ddpm_rt_device_step_call* call, size_t struct_size);
/* device: "cuda" or "cuda:N"; cuda_library: null for the one beside this library. */
DDPM_RT_API ddpm_rt_status ddpm_rt_device_kernels_open(const char* device, const char* cuda_library,
                                                       ddpm_rt_device_kernels** kernels);
DDPM_RT_API void ddpm_rt_device_kernels_release(ddpm_rt_device_kernels* kernels); /* waits for its packets; null is fine */
DDPM_RT_API ddpm_rt_status ddpm_rt_device_step(ddpm_rt_device_kernels* kernels, const ddpm_rt_device_step_call* call);
/* cond, uncond and out [count, elements] of `type`, as eps_type; scale: [count] of the host. */
DDPM_RT_API ddpm_rt_status ddpm_rt_device_cfg_combine(ddpm_rt_device_kernels* kernels, const void* cond, const void* uncond,
                                                      const float* scale, double rescale, int32_t type, size_t count,
                                                      size_t elements, void* out, void* stream);
/* alpha_bar of a named schedule ("linear", "scaled_linear", "cosine", "sigmoid"): T entries. */
DDPM_RT_API ddpm_rt_status ddpm_rt_alpha_bar(const char* schedule, size_t T, double* alpha_bar);

#ifdef __cplusplus
}
#endif

#endif /* DDPM_RT_DDPM_RT_H_ */
