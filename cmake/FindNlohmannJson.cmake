# nlohmann-json from a system package, or the headers that its PyPI package carries.
find_path(NLOHMANN_JSON_INCLUDE nlohmann/json.hpp)
if(NOT NLOHMANN_JSON_INCLUDE)
  find_package(Python COMPONENTS Interpreter QUIET)
  if(Python_EXECUTABLE)
    execute_process(COMMAND ${Python_EXECUTABLE} -c "import nlohmann_json as j; print(j.get_include(), end='')"
      OUTPUT_VARIABLE found ERROR_QUIET)
    find_path(NLOHMANN_JSON_INCLUDE nlohmann/json.hpp PATHS ${found} NO_DEFAULT_PATH)
  endif()
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NlohmannJson REQUIRED_VARS NLOHMANN_JSON_INCLUDE
  REASON_FAILURE_MESSAGE "pip install nlohmann-json, or your system's nlohmann-json package")
if(NlohmannJson_FOUND AND NOT TARGET NlohmannJson::NlohmannJson)
  add_library(NlohmannJson::NlohmannJson INTERFACE IMPORTED)
  set_target_properties(NlohmannJson::NlohmannJson PROPERTIES INTERFACE_INCLUDE_DIRECTORIES ${NLOHMANN_JSON_INCLUDE})
endif()
