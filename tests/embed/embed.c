/* A host program in C99: its own denoiser, of a Gaussian with mean 0.5 and no width, whose sample is the mean. */
#include <ddpm_rt/ddpm_rt.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static double alpha_bar[1000];

static const char* denoise(void* user, const float* x, const float* t, const int64_t* label, size_t count, float* out) {
  size_t i;
  (void)user;
  (void)label;
  for (i = 0; i < 3 * count; ++i) {
    const double ab = alpha_bar[(int)t[i / 3]];
    out[i] = (float)((x[i] - sqrt(ab) * 0.5) / sqrt(1 - ab));
  }
  return NULL;
}

static void expect(ddpm_rt_status status) {
  if (status == DDPM_RT_OK) return;
  printf("%s\n", ddpm_rt_last_error());
  exit(1);
}

int main(void) {
  const char* manifest = "{\"sample\": {\"shape\": [3], \"role\": \"vector\"}, \"prediction\": \"eps\"}";
  ddpm_rt_engine_options engine_options;
  ddpm_rt_sample_options options;
  ddpm_rt_engine* engine = NULL;
  float out[6];
  int i;

  expect(ddpm_rt_alpha_bar("linear", 1000, alpha_bar));
  ddpm_rt_engine_options_init(&engine_options, sizeof engine_options);
  expect(ddpm_rt_engine_from_callable(manifest, alpha_bar, 1000, denoise, NULL, &engine_options, &engine));
  ddpm_rt_sample_options_init(&options, sizeof options);
  options.n = 2;
  options.has_seed = 1;
  options.output = DDPM_RT_FLOAT_NCHW;
  expect(ddpm_rt_engine_sample(engine, &options, out, sizeof out));
  ddpm_rt_engine_release(engine);
  for (i = 0; i < 6; ++i) {
    if (fabs(out[i] - 0.5) > 1e-4) {
      printf("expected 0.5, got %g\n", out[i]);
      return 1;
    }
  }
  options.n = -1;
  if (ddpm_rt_engine_sample(NULL, &options, out, sizeof out) != DDPM_RT_OPTION_ERROR) return 1;
  return 0;
}
