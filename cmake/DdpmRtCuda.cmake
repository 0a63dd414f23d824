# libddpm_rt_cuda: the GPU kernels, in a library of their own that is opened only where a GPU is. Static cudart.
#
#   DDPM_RT_CUDA                ON | OFF | AUTO (default: built where nvcc is found)
#   DDPM_RT_NVCC                path of nvcc; default: on PATH, then in CUDA_HOME, then /usr/local/cuda
#   DDPM_RT_CUDA_ARCHITECTURES  default "80;90;100;120"; PTX of the last is added for what comes after
#
# nvcc from PyPI:
#   pip install "nvidia-cuda-nvcc==13.0.*" "nvidia-cuda-runtime==13.0.*" "nvidia-nvvm==13.0.*" "nvidia-cuda-crt==13.0.*"
#   cmake -S . -B build -DDDPM_RT_NVCC=<site-packages>/nvidia/cu13/bin/nvcc
#
# nvcc is called by rules of our own: CMake's CUDA language would have to link a program with it before it may compile.
set(DDPM_RT_CUDA_ARCHITECTURES "80;90;100;120" CACHE STRING "Compute capabilities of libddpm_rt_cuda")
set(DDPM_RT_HAS_CUDA FALSE)
# An editable install builds anew each time: there it has to be asked for (pip install -e . -C cmake.define.DDPM_RT_CUDA=ON).
if(DDPM_RT_CUDA STREQUAL "OFF" OR
   (DDPM_RT_CUDA STREQUAL "AUTO" AND (DDPM_RT_SANITIZE OR CMAKE_CROSSCOMPILING OR SKBUILD_STATE STREQUAL "editable")))
  return()
endif()
find_program(DDPM_RT_NVCC nvcc HINTS ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(DDPM_RT_NVCC)
  execute_process(COMMAND ${DDPM_RT_NVCC} --dryrun -x cu /dev/null -o /dev/null ERROR_VARIABLE dryrun RESULT_VARIABLE failed)
  string(REGEX MATCH "TOP=([^\n]*)" _ "${dryrun}")
  get_filename_component(DDPM_RT_CUDA_ROOT "${CMAKE_MATCH_1}" ABSOLUTE)
  find_library(DDPM_RT_CUDART cudart_static HINTS ${DDPM_RT_CUDA_ROOT} PATH_SUFFIXES lib64 lib targets/x86_64-linux/lib
    targets/sbsa-linux/lib)
endif()
if(NOT DDPM_RT_NVCC OR NOT DDPM_RT_CUDART)
  if(DDPM_RT_CUDA STREQUAL "AUTO")
    message(STATUS "ddpm_rt: nvcc with a static cudart was not found, libddpm_rt_cuda is left out")
    return()
  endif()
  message(FATAL_ERROR "DDPM_RT_CUDA=${DDPM_RT_CUDA}: expected nvcc and libcudart_static.a, got DDPM_RT_NVCC="
    "${DDPM_RT_NVCC} and DDPM_RT_CUDART=${DDPM_RT_CUDART}; install CUDA, or set DDPM_RT_NVCC (cmake/DdpmRtCuda.cmake)")
endif()
set(DDPM_RT_HAS_CUDA TRUE)

set(nvcc_architectures)
foreach(architecture IN LISTS DDPM_RT_CUDA_ARCHITECTURES)
  list(APPEND nvcc_architectures -gencode arch=compute_${architecture},code=sm_${architecture})
endforeach()
list(GET DDPM_RT_CUDA_ARCHITECTURES -1 newest)
list(APPEND nvcc_architectures -gencode arch=compute_${newest},code=compute_${newest})
# Rounding: step.h. One product, one sum, one rounding each.
set(DDPM_RT_NVCC_FLAGS -std=c++17 -O3 -ccbin ${CMAKE_CXX_COMPILER} -fmad=false -prec-sqrt=true -prec-div=true -ftz=false
  -Werror all-warnings -Xcompiler=-fPIC,-Wall,-fvisibility=hidden,-ffp-contract=off ${nvcc_architectures} --threads 2)
file(GLOB DDPM_RT_KERNEL_HEADERS ${CMAKE_CURRENT_SOURCE_DIR}/kernels/*.h ${CMAKE_CURRENT_SOURCE_DIR}/kernels/*.cuh)

# Compiles one .cu to an object.
function(ddpm_rt_add_cuda_object source object)
  add_custom_command(OUTPUT ${object}
    COMMAND ${DDPM_RT_NVCC} ${DDPM_RT_NVCC_FLAGS} -I${CMAKE_CURRENT_SOURCE_DIR}/kernels ${ARGN} -c ${source} -o ${object}
    DEPENDS ${source} ${DDPM_RT_KERNEL_HEADERS} VERBATIM COMMENT "nvcc ${source}")
endfunction()

set(step_cuda_object ${CMAKE_CURRENT_BINARY_DIR}/step_cuda.o)
ddpm_rt_add_cuda_object(${CMAKE_CURRENT_SOURCE_DIR}/kernels/step_cuda.cu ${step_cuda_object})
add_custom_target(step_cuda_object DEPENDS ${step_cuda_object})  # made once, for all who link it
add_library(ddpm_rt_cuda SHARED csrc/device_cuda.cpp ${step_cuda_object})
add_dependencies(ddpm_rt_cuda step_cuda_object)
target_include_directories(ddpm_rt_cuda PRIVATE csrc kernels)
target_include_directories(ddpm_rt_cuda SYSTEM PRIVATE ${DDPM_RT_CUDA_ROOT}/include)
set_target_properties(ddpm_rt_cuda PROPERTIES LINKER_LANGUAGE CXX)
target_link_libraries(ddpm_rt_cuda PRIVATE ddpm_rt_options ${DDPM_RT_CUDART} Threads::Threads ${CMAKE_DL_LIBS} rt)

# Programs that need a GPU to say more than that there is none; they build wherever nvcc is.
if(DDPM_RT_TESTS AND NOT SKBUILD)
  foreach(name test_step_cuda bench_step_cuda)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/${name}.o)
    ddpm_rt_add_cuda_object(${CMAKE_CURRENT_SOURCE_DIR}/tests/cpp/${name}.cu ${object} -I${CMAKE_CURRENT_SOURCE_DIR}/tests/cpp)
    add_executable(${name} ${object} ${step_cuda_object} $<TARGET_OBJECTS:ddpm_rt_kernels>)
    add_dependencies(${name} step_cuda_object)
    set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX)
    target_link_libraries(${name} PRIVATE ddpm_rt_options ${DDPM_RT_CUDART} Threads::Threads ${CMAKE_DL_LIBS} rt)
  endforeach()
endif()
